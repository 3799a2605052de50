"""A plain program ends while its greens wait: they are unwound, nobody waits for them.

Prints:
    end of main
    finally
    finally
Stderr: Task was destroyed but it is pending
"""

from greenletio import sleep, spawn


def sync():
    try:
        sleep(3600)
    finally:
        print("finally")


greens = [spawn(sync), spawn(sync)]
greens.append(spawn(int))
sleep(0)
sleep(0)
print("end of main")
