"""Run a student's code in a process of its own, with limits on what it may use.

:mod:`~lora_np.course.sandbox.runner` starts the process and judges what it leaves behind;
:mod:`~lora_np.course.sandbox.child` is the only file that runs in it, beside the student's code;
:mod:`~lora_np.course.sandbox.untrusted` reads files that a student, or that process, has written.

The limits stop honest mistakes and easy tricks. They do not stop an attacker: grade strangers'
code in a container.
"""
