"""The decoupled package: one base, one sparse task vector, a mask per modality, every encoder."""

from omnireg.package.reading import Model, Package, fingerprint_of, is_package

__all__ = ["Model", "Package", "fingerprint_of", "is_package"]
