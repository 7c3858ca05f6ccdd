"""Parts that several families use: networks, layers, likelihoods, conditioning, linear algebra."""
