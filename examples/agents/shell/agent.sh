#!/bin/sh
# The smallest agent: the turn is JSON on standard input, the answer is what it prints.
turn=$(cat)
echo "It is $(date -u +%H:%M) UTC, and I was sent ${#turn} bytes."
