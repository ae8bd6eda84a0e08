"""Train a Keras model on several workers, which may be killed at any moment and go on, also with more or fewer of them.

    TF_CONFIG=... python docs/demo/cluster_worker.py s3://bucket/run        on every worker

The endpoint and the credentials come from the usual variables (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...).
"""

import sys

import keras
import tensorflow as tf

import ckpt_remote

STEPS, SAVE_EVERY = 100, 20

strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before anything else of TensorFlow's
rank = ckpt_remote.Workers.from_environment().rank

inputs = tf.random.stateless_normal([1024, 8], seed=[1, 2])
data = tf.data.Dataset.from_tensor_slices((inputs, tf.reduce_sum(inputs, axis=1, keepdims=True)))
# A plain iterator, in an order of each worker's own: TensorFlow cannot save a distributed one.
batches = iter(data.shuffle(1024, seed=rank).repeat().batch(32))

with strategy.scope():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
step = tf.Variable(0, dtype=tf.int64)  # not in the scope: int() of a mirrored variable fails

checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, step=step, **{f"batches_{rank}": batches})
manager = ckpt_remote.CheckpointManager(checkpoint, sys.argv[1], max_to_keep=3)
restored = manager.restore_or_initialize()
print(f"starting from step {int(step)}: {restored or 'nothing saved yet'}", flush=True)


def learn(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """One step of one replica; Keras adds the gradients of all of them up."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(x, training=True) - y)) / strategy.num_replicas_in_sync
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return loss


@tf.function
def train(batch: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
    """One step of all replicas; returns the loss, which is the same on all workers."""
    return strategy.reduce("SUM", strategy.run(learn, args=batch), axis=None)


while step < STEPS:
    loss = train(strategy.experimental_distribute_values_from_function(lambda _: next(batches)))
    print(f"step {int(step.assign_add(1))}  loss {loss:.4f}", flush=True)
    if step % SAVE_EVERY == 0:
        print("saved", manager.save(checkpoint_number=step), flush=True)
manager.close()
