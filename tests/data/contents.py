"""What a data set holds."""


def contents(dataset):
    """Every image of a data set as bytes with its label, unordered."""
    return sorted(
        (image.tobytes(), int(label))
        for images, labels in dataset.as_numpy_iterator()
        for image, label in zip(images, labels, strict=True)
    )


def labels_by_image(dataset):
    return dict(contents(dataset))
