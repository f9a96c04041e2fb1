"""Quality: metrics, trivial baselines, the demo's protocol and its report."""
