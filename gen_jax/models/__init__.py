"""Models, one package per family: mixture, hmm, vae, flow (with bijections), gan, and text."""
