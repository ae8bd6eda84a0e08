"""Train a classifier of handwritten digits that may be killed at any moment and resumes where it was.

    python docs/demo/train.py s3://bucket/run

The endpoint and the credentials come from the usual variables (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...).
"""

import hashlib
import sys

import keras
import tensorflow as tf
from sklearn.datasets import load_digits

import ckpt_remote

STEPS, SAVE_EVERY, REPORT_EVERY = 1000, 100, 50

# The same numbers on every run, so that a resumed run can be compared with one that was never killed.
keras.utils.set_random_seed(1)
tf.config.experimental.enable_op_determinism()

digits = load_digits()
images, labels = (digits.data / 16).astype("float32"), digits.target
seen, unseen = slice(1500), slice(1500, None)
training = tf.data.Dataset.from_tensor_slices((images[seen], labels[seen]))
batches = iter(training.shuffle(1500, seed=1).repeat().batch(64))

model = keras.Sequential(
    [
        keras.Input((64,)),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])

step = tf.Variable(0, dtype=tf.int64)
checkpoint = tf.train.Checkpoint(
    model=model,  # its optimizer included
    random=model.non_trainable_variables,  # Dropout's seeds, which Keras 3 does not track below the model
    batches=batches,  # the place in the data, and what waits in the shuffle buffer
    step=step,
)
manager = ckpt_remote.CheckpointManager(checkpoint, sys.argv[1], max_to_keep=3)
restored = manager.restore_or_initialize()
print(f"starting from step {int(step)}: {restored or 'nothing saved yet'}", flush=True)

while step < STEPS:
    metrics = model.train_on_batch(*next(batches), return_dict=True)
    step.assign_add(1)
    if step % REPORT_EVERY == 0:
        print(f"step {int(step):4}  loss {metrics['loss']:.4f}", flush=True)
        model.reset_metrics()
    if step % SAVE_EVERY == 0:
        print("saved", manager.save(checkpoint_number=step), flush=True)

accuracy = model.evaluate(images[unseen], labels[unseen], verbose=0, return_dict=True)["accuracy"]
print(f"finished at step {int(step)}: {accuracy:.1%} of the unseen digits are recognised")

# Training needs none of this: by it the demo compares two runs.
for name, tensors in (
    ("final weights", model.variables + model.optimizer.variables),
    ("next batch", next(batches)),
):
    print(name, hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest())
