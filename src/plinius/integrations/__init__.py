"""What ties the mirror to other people's training loops; each needs its extra installed."""
