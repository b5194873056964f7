"""Deployment: from an accepted bundle to the champion, with evidence, or not at all."""
