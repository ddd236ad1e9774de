"""Training the expert: on its own next tokens, or through the black box, so that the combination is right.

examples    rows -> ids of the small model, and where its tokens end
spots       the base's candidates along a text -> what the small model says of them, as sums over its ids
losses      both losses, as torch has gradients for them
train       LoRA, step by step, from a checkpoint on
run         tune: what is asked, what that takes, training, the adapter and its card
"""
