# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables are shared with `measure`
# How each program is started and measured. Sourced by `measure`.

large=() # the measurements that write the large file: functions, called once a round
small=() # the others

# have PEER PACKAGES PROGRAM...: returns whether the programs exist; prints the missing ones.
have() {
    local program
    for program in "${@:3}"; do
        if ! command -v "$program" >/dev/null; then
            say "measure: $1 is left out: there is no $program here (packages: $2)"
            return 1
        fi
    done
}

version() { printf '%s\t%s\n' "$1" "$2" >>"$work/versions"; }

# serve LOG COMMAND...: starts a server that `cleanup` stops.
serve() {
    "${@:2}" </dev/null >"$work/$1.log" 2>&1 &
    servers+=("$!")
}

# Waits until the last started server listens on a port.
listens() {
    local tries
    for ((tries = 0; tries < 100; tries++)); do
        if (: </dev/tcp/127.0.0.1/"$1") 2>/dev/null; then return 0; fi
        kill -0 "${servers[-1]}" 2>/dev/null || break
        sleep 0.1
    done
    return 1
}

make_files() {
    command -v cc >/dev/null || fail "there is no C compiler (packages: gcc libc6-dev)"
    cc -O2 -o "$work/bare" "$here/bare.c"
    mkdir -p "$work/served/small"
    head -c $((mib << 20)) /dev/urandom >"$work/served/large"
    head -c $((objects * 10240)) /dev/urandom | (cd "$work/served/small" && split -a 4 -d -b 10240 - '')
    chmod -R a+rX "$work" # for the users that nginx and PostgreSQL run as
}

start_peers() {
    large+=(bare_file)
    small+=(bare_trips bare_commits)
    version 'bare loop' "Linux $(uname -r)"
    if have rsync rsync rsync; then start_rsync; fi
    if have nginx 'nginx-light curl' nginx curl; then start_nginx; fi
    if have ZEO 'pip: ZEO' "$python"; then start_zeo; fi
    start_postgres
}

# --- The large file -------------------------------------------------------------------------------------------------

# record_file PEER WHAT SECONDS SECONDS_WITH_SYNC
record_file() {
    record "$1" "$2" MB/s file "$(awk "BEGIN { print $((mib << 20)) / 1e6 / $3 }")"
    record "$1" "$2, synced" MB/s file+sync "$(awk "BEGIN { print $((mib << 20)) / 1e6 / $4 }")"
}

arrived_whole() { cmp "$work/served/large" "$1"; }

bare_file() {
    local durations
    durations=$("$work/bare" file "$work/served/large" "$work/target")
    # shellcheck disable=SC2086 # two numbers
    record_file 'bare loop' "$mib MiB into a file" $durations
    arrived_whole "$work/target"
    rm "$work/target"
}

# fetch PEER COMMAND...: a command that writes the file `target`.
fetch() {
    local begun written synced
    begun=${EPOCHREALTIME/./}
    "${@:2}"
    written=${EPOCHREALTIME/./}
    sync -d "$work/target"
    synced=${EPOCHREALTIME/./}
    record_file "$1" "$mib MiB into a file" $((written - begun))e-6 $((synced - begun))e-6
    arrived_whole "$work/target"
    rm "$work/target"
}

bare_trips() {
    local rate
    rate=$("$work/bare" trips "$seconds")
    record 'bare loop' 'round trips with 10 KiB' /s trip "$rate"
}

bare_commits() {
    local rate
    rate=$("$work/bare" commits log "$work/target" "$seconds")
    record 'bare loop' '10 KiB sent, logged, synced' /s commit "$rate"
    rm "$work/target"
    rate=$("$work/bare" commits new "$work/target" "$seconds")
    record 'bare loop' '10 KiB sent, appended, synced' /s commit "$rate"
    rm "$work/target"
}

# --- rsync ----------------------------------------------------------------------------------------------------------

start_rsync() {
    local user=
    ((EUID)) || user="uid = $(id -un)" # as root, rsync needs the user to read as
    rsync_port=$("$work/bare" port)
    cat >"$work/rsyncd.conf" <<END
$user
[served]
path = $work/served
use chroot = no
END
    serve rsync rsync --daemon --no-detach --address=127.0.0.1 --port="$rsync_port" --config="$work/rsyncd.conf"
    listens "$rsync_port"
    large+=(rsync_file)
    version rsync "$(rsync --version | awk 'NR == 1 { print $3 }')"
}

rsync_file() { fetch rsync rsync --whole-file "rsync://127.0.0.1:$rsync_port/served/large" "$work/target"; }

# --- nginx, with curl and wrk ---------------------------------------------------------------------------------------

start_nginx() {
    local port nginx user=
    port=$("$work/bare" port)
    ((EUID)) || user="user $(id -un) $(id -gn);" # as root, nginx needs the user of its workers
    mkdir "$work/nginx"
    cat >"$work/nginx/nginx.conf" <<END
$user
worker_processes 2;
daemon off;
pid nginx.pid;
error_log stderr;
events {}
http {
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {
        listen 127.0.0.1:$port;
        root $work/served;
    }
}
END
    serve nginx nginx -p "$work/nginx" -c nginx.conf -e stderr
    listens "$port"
    url=http://127.0.0.1:$port
    last=$(printf %04d $((objects - 1)))
    cat >"$work/wrk.lua" <<END
local requests, sent = {}, 0
function init()
    for n = 0, $objects - 1 do requests[n] = wrk.format("GET", string.format("/small/%04d", n)) end
end
function request()
    sent = (sent + 1) % $objects
    return requests[sent]
end
function done(all)
    local e = all.errors
    local failed = e.connect + e.read + e.write + e.status + e.timeout
    io.write(string.format("RESULT %d %d %d %d\n", all.requests, all.duration, all.bytes, failed))
end
END
    large+=(nginx_file)
    small+=(nginx_files nginx_files_parallel)
    nginx=$(nginx -v 2>&1 | sed 's|.*/||')
    version 'nginx + curl' "$nginx + $(curl --version | awk 'NR == 1 { print $2 }')"
    if have 'nginx + wrk' wrk wrk; then
        small+=(nginx_gets nginx_gets_parallel)
        # wrk prints its version and exits with an error.
        version 'nginx + wrk' "$nginx + $( (wrk -v || true) 2>&1 | sed -n 's|^wrk [^0-9]*\([^ ]*\).*|\1|p')"
    fi
}

nginx_file() { fetch 'nginx + curl' curl --no-progress-meter -f -o "$work/target" "$url/large"; }

# gets THREADS CONNECTIONS WORDS
gets() {
    local requests duration bytes errors result
    result=$(wrk -t "$1" -c "$2" -d "${seconds}s" -s "$work/wrk.lua" "$url" | sed -n 's/^RESULT //p')
    read -r requests duration bytes errors <<<"$result"
    ((errors == 0 && bytes >= requests * 10240)) || fail "nginx: $errors errors, $bytes bytes for $requests requests"
    record 'nginx + wrk' "10 KiB GETs, $3" /s trip "$(awk "BEGIN { print $requests / $duration * 1e6 }")"
}

nginx_gets() { gets 1 1 '1 connection'; }
nginx_gets_parallel() { gets 1 64 '64 connections'; }

# gets_into_files WHAT OPTION...
gets_into_files() {
    local begun got
    mkdir "$work/got"
    begun=${EPOCHREALTIME/./}
    curl --no-progress-meter -f "${@:2}" "$url/small/[0000-$last]" -o "$work/got/#1"
    got=${EPOCHREALTIME/./}
    record 'nginx + curl' "$1" /s trip "$(awk "BEGIN { print $objects * 1e6 / ($got - $begun) }")"
    diff -r "$work/served/small" "$work/got"
    rm -r "$work/got"
}

nginx_files() { gets_into_files '10 KiB GETs into files, 1 connection'; }
nginx_files_parallel() { gets_into_files '10 KiB GETs into files, 64 connections' --parallel --parallel-max 64; }

# --- ZEO ------------------------------------------------------------------------------------------------------------

start_zeo() {
    local found
    if ! found=$("$python" "$here/zeo_calls.py" version 2>/dev/null); then
        say "measure: ZEO is left out: $python does not have it (pip: ZEO; see --python)"
        return
    fi
    zeo_port=$("$work/bare" port)
    mkdir "$work/zeo"
    cat >"$work/zeo/zeo.conf" <<END
<zeo>
    address 127.0.0.1:$zeo_port
</zeo>
<filestorage 1>
    path $work/zeo/Data.fs
    blob-dir $work/zeo/blobs
</filestorage>
END
    serve zeo "$python" -m ZEO.runzeo -C "$work/zeo/zeo.conf"
    listens "$zeo_port"
    zeo seed "$work/served/large" "$objects"
    large+=(zeo_load_file zeo_store_file)
    small+=(zeo_load_records zeo_load_blobs zeo_commit_records zeo_commit_blobs)
    version ZEO "$found"
}

zeo() { "$python" "$here/zeo_calls.py" "$zeo_port" "$work/zeo" "$@"; }

# zeo_file WHAT COMMAND...: a command that prints two durations and the path of a large file.
zeo_file() {
    local result path written synced
    result=$(zeo "${@:2}")
    read -r written synced path <<<"$result"
    record_file ZEO "$mib MiB $1" "$written" "$synced"
    arrived_whole "$path"
    rm -rf "$path" "$work"/zeo/zeo-client-*
}

zeo_load_file() {
    find "$work/zeo/blobs" -size +16M -exec cat {} + >/dev/null # read the server's copy, too
    zeo_file loaded load-large
}
zeo_store_file() { zeo_file stored store-large "$work/served/large"; }

# zeo_calls WHAT LIMIT COMMAND...: a command that prints a number per second.
zeo_calls() {
    local result
    result=$(zeo "${@:3}")
    record ZEO "$1" /s "$2" "$result"
    rm -rf "$work"/zeo/zeo-client-*
}

zeo_load_records() { zeo_calls 'loads of a 10 KiB record' trip load-records "$objects"; }
zeo_load_blobs() { zeo_calls 'loads of a 10 KiB blob' trip load-blobs "$objects"; }
zeo_commit_records() { zeo_calls 'commits of a 10 KiB record' commit commit-records "$calls"; }
zeo_commit_blobs() { zeo_calls 'commits of a 10 KiB blob' commit commit-blobs "$calls"; }

# --- PostgreSQL -----------------------------------------------------------------------------------------------------

start_postgres() {
    local bin password options as=()
    bin=$(find /usr/lib/postgresql /usr/bin -path '*/bin/initdb' 2>/dev/null | sort -V | tail -n 1)
    if [[ -z $bin ]]; then
        say 'measure: PostgreSQL is left out: there is no initdb here (packages: postgresql)'
        return
    fi
    bin=${bin%/initdb} postgres_bin=${bin%/initdb}
    mkdir "$work/postgres"
    if ((EUID == 0)); then # PostgreSQL refuses to run as root
        if ! runuser -u postgres -- test -x "$work"; then
            say "measure: PostgreSQL is left out: the user postgres does not get to $work (see --dir)"
            return
        fi
        as=(runuser -u postgres --)
    fi
    password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    export PGHOST=127.0.0.1 PGUSER=postgres PGDATABASE=postgres PGPASSWORD=$password
    PGPORT=$("$work/bare" port) && export PGPORT
    (umask 077 && echo "$password" >"$work/postgres/password")
    ((EUID)) || chown -R postgres: "$work/postgres"
    "${as[@]}" "$bin/initdb" --no-sync -U postgres -A scram-sha-256 --pwfile="$work/postgres/password" \
        -D "$work/postgres/data" >"$work/initdb.log"
    stop_postgres=("${as[@]}" "$bin/pg_ctl" stop -s -m immediate -D "$work/postgres/data")
    options="-c listen_addresses=127.0.0.1 -c port=$PGPORT -c unix_socket_directories=''"
    "${as[@]}" "$bin/pg_ctl" start -s -w -D "$work/postgres/data" -l "$work/postgres/postgres.log" -o "$options"
    body=$(head -c 7680 /dev/urandom | base64 -w 0) # 10 KiB of letters
    # Compressing random data would only cost time.
    sql -c 'CREATE TABLE objects (id bigserial PRIMARY KEY, body text NOT NULL)' \
        -c 'ALTER TABLE objects ALTER body SET STORAGE EXTERNAL'
    echo 'INSERT INTO objects (body) VALUES (:body);' >"$work/insert.sql"
    small+=(postgres_commits postgres_commits_parallel)
    version PostgreSQL "$("$bin/postgres" --version | awk '{ print $3 }')"
}

sql() { "$postgres_bin/psql" -qXAt -v ON_ERROR_STOP=1 "$@"; }

# inserts CONNECTIONS THREADS
inserts() {
    local result commits wrong
    result=$("$postgres_bin/pgbench" -n -M prepared -c "$1" -j "$2" -T "$seconds" -D body="$body" -f "$work/insert.sql")
    commits=$(sed -n 's/^tps = \([0-9.]*\).*/\1/p' <<<"$result")
    wrong=$(sql -c "SELECT count(*) FILTER (WHERE body <> '$body') + (count(*) = 0)::int FROM objects")
    sql -c 'TRUNCATE objects'
    ((wrong == 0)) || fail "PostgreSQL: $wrong rows are not what was inserted"
    record PostgreSQL "commits of a 10 KiB row, $1 at once" /s commit "$commits"
}

postgres_commits() { inserts 1 1; }
postgres_commits_parallel() { inserts 16 2; }
