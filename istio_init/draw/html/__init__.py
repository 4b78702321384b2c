"""The chains as a page of one file: document.py writes it, from the values of model.py and the scripts beside it.

The scripts are named as the modules whose ways they go: semantics.js, trace.js, journey.js, question.js, explain.js and
way.js. tests hold that they give the same answers (integration/draw/test_html.py). view.js alone touches the page.
"""
