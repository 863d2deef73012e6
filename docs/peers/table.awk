# Prints the medians of several rounds as a table, or as one JSON object a line (-v format=json).
#
# The first input file has lines of: peer, version. The second has: round, peer, what, unit, limit, value.
# A ratio is a value divided by the bare loop's (first) value of the same limit in the same round, which cancels
# disturbances of a whole round.

BEGIN { FS = "\t" }

FILENAME == ARGV[1] {
    version[$1] = $2
    peers[++npeers] = $1
    next
}

{
    row = $2 FS $3
    if (!(row in unit)) {
        rows[++nrows] = row
        unit[row] = $4
        limit[row] = $5
    }
    value[row, ++count[row]] = $6
    round[row, count[row]] = $1
    if ($2 == "bare loop" && !(($5, $1) in bare))
        bare[$5, $1] = $6
}

# Fills `sorted` with n values in ascending order.
function sort(values, key, n,    i, j, v) {
    for (i = 1; i <= n; i++) {
        v = values[key, i] + 0
        for (j = i; j > 1 && sorted[j - 1] > v; j--)
            sorted[j] = sorted[j - 1]
        sorted[j] = v
    }
}

function median(n) {
    return n % 2 ? sorted[(n + 1) / 2] : (sorted[n / 2] + sorted[n / 2 + 1]) / 2
}

function print_row(row,    i, n, middle, low, high, ratio, name) {
    n = count[row]
    for (i = 1; i <= n; i++)
        ratios[row, i] = value[row, i] / bare[limit[row], round[row, i]]
    sort(ratios, row, n)
    ratio = median(n)
    sort(value, row, n)
    middle = median(n)
    low = sorted[1]
    high = sorted[n]
    split(row, name, FS)
    if (format == "json")
        printf "{\"peer\":\"%s\",\"version\":\"%s\",\"what\":\"%s\",\"unit\":\"%s\",\"limit\":\"%s\",\"rounds\":%d,"\
            "\"median\":%.1f,\"low\":%.1f,\"high\":%.1f,\"ratio\":%.4f}\n",
            name[1], version[name[1]], name[2], unit[row], limit[row], n, middle, low, high, ratio
    else
        printf "%-13s  %-38s  %7.0f %-4s  %15s  %-9s  %6.3f\n",
            name[1], name[2], middle, unit[row], sprintf("%.0f..%.0f", low, high), limit[row], ratio
}

END {
    if (format != "json")
        printf "%-13s  %-38s  %12s  %15s  %-9s  %6s\n", "peer", "what", "median     ", "low..high", "limit", "ratio"
    # Prints the rows of one limit together, the limit itself first; otherwise in order of measurement.
    split("file\tfile+sync\ttrip\tcommit", limits)
    for (l = 1; l in limits; l++)
        for (first = 1; first >= 0; first--)
            for (r = 1; r <= nrows; r++)
                if (limit[rows[r]] == limits[l] && (rows[r] ~ /^bare loop/) == first)
                    print_row(rows[r])
    if (format != "json")
        for (p = 1; p <= npeers; p++)
            printf "%s%s: %s", (p == 1 ? "\n" : "; "), peers[p], version[peers[p]]
    if (format != "json")
        print ""
}
