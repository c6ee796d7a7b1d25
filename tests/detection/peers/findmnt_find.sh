#!/bin/sh
# Every mount, and everything below the given directories, for `diff`:
# findmnt_find.sh DIR... >before; run the sandbox; findmnt_find.sh DIR... >after; diff before after
findmnt --raw --noheadings --output TARGET,SOURCE,FSTYPE | sort
find "$@" -xdev -printf '%y %i %p\n' | sort
