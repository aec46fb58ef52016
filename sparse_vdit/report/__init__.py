"""Metrics, video files, figures and the HTML page."""
