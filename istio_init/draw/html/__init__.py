"""The chains as a page of one file: document.py writes it, from the values of model.py and the scripts beside it.

The page answers for any packet that somebody types, so its scripts repeat simulate/ in JavaScript: semantics.js,
trace.js, path.js, report.js, and request.js for cli/verbs/packet_flags.py. tests/draw/test_page_scripts.py runs them
under Node and compares their answers with simulate/'s. view.js, answer.js, lighting.js and elements.js touch the page.
"""
