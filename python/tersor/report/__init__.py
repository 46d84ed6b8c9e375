"""What compression did to each layer, as a table, JSON or a page."""

from tersor.report.report import LayerRow, Report, StepRow, Totals

__all__ = ["LayerRow", "Report", "StepRow", "Totals"]
