#!/bin/sh
# The chat page as a C array, on standard output: page.html with the style and the scripts in it.
# Copyright 2026 the mixtral authors. Licensed under the Apache License, Version 2.0.
#
#   embed.sh > ngx_http_mixtral_page.h
set -eu
cd "$(dirname "$0")"
scripts='words.js markdown.js store.js api.js page.js'
# shellcheck disable=SC2086  # a list; awk would say nothing of a file that is missing
cat page.html style.css $scripts >/dev/null
echo '/* Made by nginx_module/chat/embed.sh from the files beside it */'
echo 'static u_char  ngx_http_mixtral_page[] = {'
awk -v scripts="$scripts" '
    function insert(name,    line) {
        while ((getline line < name) > 0)
            print line
        close(name)
    }
    /^<style>@style.css@<\/style>$/ { print "<style>"; insert("style.css"); print "</style>"; next }
    /^<script>@script@<\/script>$/ {
        print "<script>\n\"use strict\";"
        n = split(scripts, names, " ")
        for (i = 1; i <= n; i++)
            insert(names[i])
        print "</script>"
        next
    }
    { print }
' page.html | od -An -v -tu1 | sed 's/  *\([0-9]\)/\1/; s/  */,/g; s/$/,/'
echo '};'
