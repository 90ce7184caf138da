"""The demo: a real, noisy collection, served over loopback as if it were the web, through every stage."""
