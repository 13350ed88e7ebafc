"""What programs that embed msb-pull use; ``import msb_pull`` offers it. The command line has its own, wider way in.

Nothing here prints, exits or touches signals. Every error is a :class:`msb_pull.MsbPullError`.
"""
