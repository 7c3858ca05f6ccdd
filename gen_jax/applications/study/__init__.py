"""Human studies on a web page: protocol, stimuli, a store that cannot lose an answer, the server, and the analysis."""
