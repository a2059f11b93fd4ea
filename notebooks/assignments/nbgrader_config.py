"""Settings of nbgrader: every answer runs in a process of its own, and no kernel runs."""

from lora_np.course.nbgrader import Diagnose

c = get_config()  # noqa: F821  nbgrader defines it

c.CourseDirectory.course_id = "lora"
c.IncludeHeaderFooter.header = ""
c.ClearSolutions.code_stub = {"python": "# YOUR CODE HERE\nraise NotImplementedError"}

# The outputs of a submission stay, so that the reader of written answers sees its figures.
c.Autograde.sanitize_preprocessors = [
    "nbgrader.preprocessors.DeduplicateIds",
    "nbgrader.preprocessors.OverwriteKernelspec",
    "nbgrader.preprocessors.OverwriteCells",
    "nbgrader.preprocessors.CheckCellMetadata",
]
c.OverwriteCells.add_missing_cells = True
c.Autograde.autograde_preprocessors = [
    Diagnose,  # replaces Execute
    "nbconvert.preprocessors.ClearMetadataPreprocessor",
    "nbgrader.preprocessors.LimitOutput",
    "nbgrader.preprocessors.SaveAutoGrades",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]
# Pages that show a submission run no script from its written answers or its outputs.
c.HTMLExporter.filters = {"markdown2html": "lora_np.course.nbgrader.markdown_to_safe_html"}
c.HTMLExporter.sanitize_html = True
# Feedback shows the diagnosis, but not the hidden test that led to it.
c.GenerateFeedback.preprocessors = [
    "nbgrader.preprocessors.GetGrades",
    "nbgrader.preprocessors.ClearHiddenTests",
    "nbconvert.preprocessors.CSSHTMLHeaderPreprocessor",
]
