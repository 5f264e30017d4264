"""The declarative side of the registry: manifests in, changes applied, manifests out."""
