"""Text-to-SQL: a question on a small database becomes a query, and the query is run.

A language model is told a schema on one line and a question, and answers with a query of SQLite. An
answer is right if its rows are those of the gold query on several databases: execution accuracy.

The training questions have schemas, phrasings and values of their own. Three test splits change one
of the three each: values, phrasings (written without sight of those of training), schemas.
"""
