"""nbgrader's settings: answers are diagnosed in processes of their own, and no kernel runs."""

from lora_np.course.nbgrader import Diagnose

c = get_config()  # noqa: F821  nbgrader defines it

c.CourseDirectory.course_id = "lora"
c.IncludeHeaderFooter.header = ""
c.ClearSolutions.code_stub = {"python": "# YOUR CODE HERE\nraise NotImplementedError"}

# A submission's own outputs stay, for the grader of written answers to see its figures.
c.Autograde.sanitize_preprocessors = [
    "nbgrader.preprocessors.DeduplicateIds",
    "nbgrader.preprocessors.OverwriteKernelspec",
    "nbgrader.preprocessors.OverwriteCells",
    "nbgrader.preprocessors.CheckCellMetadata",
]
c.OverwriteCells.add_missing_cells = True
c.Autograde.autograde_preprocessors = [
    Diagnose,  # in the place of Execute
    "nbconvert.preprocessors.ClearMetadataPreprocessor",
    "nbgrader.preprocessors.LimitOutput",
    "nbgrader.preprocessors.SaveAutoGrades",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]
# Pages that show a submission run no script of it: neither of its written answers nor its outputs.
c.HTMLExporter.filters = {"markdown2html": "lora_np.course.nbgrader.markdown_to_safe_html"}
c.HTMLExporter.sanitize_html = True
# Feedback shows the diagnosis, and not the hidden test that led to it.
c.GenerateFeedback.preprocessors = [
    "nbgrader.preprocessors.GetGrades",
    "nbgrader.preprocessors.ClearHiddenTests",
    "nbconvert.preprocessors.CSSHTMLHeaderPreprocessor",
]
