"""Parts shared by several families: networks, layers, likelihoods, conditioning, linear algebra."""
