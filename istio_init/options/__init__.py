"""What a user can ask for, from flags, environment, annotations or a manifest, as one frozen `Options`; and back."""
