"""What sslx costs and gains, in ratios measured side by side."""
