"""Keep engines and a gateway at what a store says is released."""
