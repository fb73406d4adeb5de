"""The network: frozen encoder, neck, state-space decoder, and how residuals become scores."""
