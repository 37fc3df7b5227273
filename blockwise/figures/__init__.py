"""Figures of what runs, studies and measurements leave behind, one file per family. Nothing here loads torch."""
