"""The paper's equations, samplers, guidance and conditions."""
