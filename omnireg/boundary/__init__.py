"""What comes from outside, checked at one door per kind: names, documents, files, printed text."""
