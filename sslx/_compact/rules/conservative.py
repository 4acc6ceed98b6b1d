"""Primitives without a rule on purpose, and why.

Their operands and results are kept whole and reported (`Compact.held_back`). Together
with the rules and the equations that hold programs, this covers all primitives of JAX.
"""

REASONS = {
    "mixes all entries of its matrices": (
        "cholesky cholesky_update eig eigh geqp3 geqrf hessenberg householder_product "
        "lu lu_pivots_to_permutation ormqr qr schur svd symmetric_product "
        "triangular_solve tridiagonal tridiagonal_solve"
    ),
    "gives results that depend on how many entries it is given": (
        "approx_top_k select_and_gather_add select_and_scatter"
    ),
    "runs a program that is not analysed": (
        "call call_exported call_hi_primitive call_hi_primitive_linearized composite "
        "core_map cudnn_fusion custom_jvp_call_jaxpr custom_lin custom_linear_solve "
        "custom_partitioning custom_vmap_call eval_jaxpr linear_call reduce remat_opt "
        "run_state shard_map stage"
    ),
    "leaves JAX, or is there for what it does": (
        "check debug_callback debug_print ffi_call inspect_sharding io_callback "
        "pure_callback shape_assertion unreachable"
    ),
    "reads or writes memory in place": (
        "accum_grad_in_ref addupdate box_get box_set create_linear empty_ref free_ref "
        "freeze get log_extend log_read new_box new_log new_ref pin swap unpin"
    ),
    "talks to other devices": (
        "all_gather all_gather_done all_gather_invariant all_gather_reduced "
        "all_gather_reduced_start all_gather_start all_to_all all_to_all_done "
        "all_to_all_start axis_index pbroadcast pbroadcast_done pbroadcast_dynamic "
        "pbroadcast_start pmax pmin ppermute ppermute_done ppermute_start precv "
        "preduced psend psum psum_done psum_invariant psum_invariant_start psum_start "
        "pvary ragged_all_to_all reduce_scatter reduce_scatter_done "
        "reduce_scatter_start reduced_vary_cast reduced_vary_cast_p unreduced_pmax "
        "unreduced_pmin unreduced_psum unreduced_psum_start unreduced_reduce_scatter "
        "unreduced_reduce_scatter_start vary_unreduced_cast vary_unreduced_cast_p"
    ),
    "is made for operands of one size": (
        "dot_product_attention_bwd dot_product_attention_bwd_wrapper "
        "dot_product_attention_fp8_bwd dot_product_attention_fp8_bwd_wrapper "
        "dot_product_attention_fp8_fwd dot_product_attention_fp8_fwd_wrapper "
        "dot_product_attention_fwd dot_product_attention_fwd_wrapper layout_constraint "
        "relayout scaled_dot scaled_matmul scaled_matmul_wrapper "
        "with_memory_space_constraint"
    ),
    "counts, orders or converts for other primitives": (
        "after_all broadcast_to create_token dce_sink dim_as_value dimension_size "
        "empty empty2 from_edtype iota_2x32_shape philox2x32 philox4x32 platform_index "
        "rng_uniform threefry4x32 tie to_edtype zeros_like"
    ),
}

CONSERVATIVE = {name: why for why, names in REASONS.items() for name in names.split()}
