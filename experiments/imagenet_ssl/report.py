"""The report of `experiments.imagenet_ssl`: that of `cifar_ssl`, and top-5 accuracy."""

from typing import Any

from experiments.cifar_ssl import report as ssl_report
from experiments.imagenet_ssl.stages import Context
from experiments.reports.report import Report
from sslx import report as pages


def write(context: Context) -> dict[str, Any]:
    """Pictures, one HTML page and a table on the terminal."""
    return ssl_report.write(context, REPORT)


def page_content(record: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    """That of `cifar_ssl`, and top-5 accuracy."""
    content = ssl_report.page_content(record, figures)
    return {**content, "sections": [*content["sections"], top5_section(record)]}


def top5_section(record: dict[str, Any]) -> pages.Section:
    """Top-1 and top-5 of the three networks after their last epochs."""
    rows = [
        {
            "network": title,
            "top-1": f"{100 * record[stage]['test_accuracy']:.2f}%",
            "top-5": f"{100 * record[stage]['test_top5']:.2f}%",
        }
        for stage, title in (
            ("baseline", "dense"),
            ("ssl", "dense with zeros"),
            ("finetune", "compact"),
        )
    ]
    return pages.Section(
        "Top-1 and top-5",
        "Share of the validation images whose label has the largest, or one of the "
        "five largest outputs; one central crop, after the last epoch.",
        None,
        rows,
    )


REPORT = Report(ssl_report.pictures, page_content)
