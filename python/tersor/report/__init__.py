"""What compression did to each layer, as a table, JSON or a page."""

from tersor.report.report import LayerRow, Report, Totals

__all__ = ["LayerRow", "Report", "Totals"]
