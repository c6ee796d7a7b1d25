#!/bin/sh
# Every open file of every process, for `diff`: lsof_diff.sh >before; run the sandbox; lsof_diff.sh >after; diff before after
# lsof sees this script and its pipeline too, by the shell's pid or as its children: those are no leaks.
lsof -nPwR | awk -v self=$$ '$1 != "lsof" && $2 != self && $3 != self' | sort
