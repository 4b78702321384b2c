"""The chains as a page in one file, which document.py makes from the values of model.py and the scripts here.

The page follows any packet that a user types, so its scripts implement simulate/ in JavaScript: semantics.js,
trace.js, path.js, report.js, and request.js for cli/verbs/packet_flags.py. tests/draw/test_page_scripts.py runs them
under Node and compares the results with simulate/. view.js, answer.js, lighting.js and elements.js change the page.
"""
