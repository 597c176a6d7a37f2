#!/bin/sh
# certificate.sh FOLDER NAME [HOST...]: a key and a certificate, FOLDER/NAME.key and NAME.crt, by the authority FOLDER/ca.key,
# which is made where there is none and should not stay on the server. NAME is a board's, or "mothership" for receivers.
# With HOSTs (names or addresses that boards connect to) it is a broker's. DAYS is how long it is valid: 3650.
# certificate.sh --revoke FOLDER NAME: FOLDER/revoked.pem, for mosquitto's crlfile, has this certificate too; NAME may get a new one.
# FOLDER/revoked.pem is there from the first certificate on, with nobody in it: brokers refuse to start without it.
set -eu
umask 077
revoke=
[ "${1-}" != --revoke ] || { revoke=yes; shift; }
[ $# -ge 2 ] || { sed -n '2,6s/^# //p' "$0" >&2; exit 2; }
folder=$1 name=$2
shift 2
case $name in ca | *[!A-Za-z0-9_.-]*) echo "certificate.sh: '$name' is not a name: letters, digits, - _ . (and not ca)" >&2; exit 2 ;; esac
if [ -z "$name" ] || [ "${#name}" -gt 64 ]; then echo "certificate.sh: a name has 1 to 64 characters" >&2; exit 2; fi
[ -n "$revoke" ] || [ ! -e "$folder/$name.crt" ] || { echo "certificate.sh: $folder/$name.crt is there already: remove it first" >&2; exit 1; }
mkdir -p "$folder"
days=${DAYS:-3650}
log=$folder/$name.log
trap 'rm -f "$folder/$name.ext" "$folder/$name.csr" "$log"' EXIT

run() { # it says much where nothing is wrong
    openssl "$@" 2>"$log" || { cat "$log" >&2; exit 1; }
}

authority() { # openssl's own way of keeping a list of what has been revoked
    touch "$folder/revoked.txt"
    printf '[ca]\ndefault_ca=ca_here\n[ca_here]\ndatabase=%s\ndefault_md=sha256\n' "$folder/revoked.txt" >"$folder/$name.ext"
    run ca -config "$folder/$name.ext" -cert "$folder/ca.crt" -keyfile "$folder/ca.key" "$@"
}

list_revoked() {
    authority -gencrl -crldays "$days" -out "$folder/revoked.pem"
    chmod 644 "$folder/revoked.pem"
}

if [ -n "$revoke" ]; then
    [ -e "$folder/$name.crt" ] || { echo "certificate.sh: there is no $folder/$name.crt to revoke" >&2; exit 1; }
    authority -revoke "$folder/$name.crt"
    list_revoked
    rm "$folder/$name.crt" "$folder/$name.key"
    echo "$folder/revoked.pem: the certificate of $name is revoked, and its key and certificate are deleted here."
    echo "Copy the file to the broker and send mosquitto SIGHUP: from then on it lets nobody in with it. A connection that is"
    echo "there already stays; end it with: mothership disconnect localhost:8884 $name --tls CA CERT KEY"
    exit 0
fi

if [ ! -e "$folder/ca.key" ]; then
    run req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=stack fleet" -days "$days" \
        -addext "keyUsage=critical,keyCertSign,cRLSign" -keyout "$folder/ca.key" -out "$folder/ca.crt"
    echo "$folder/ca.key: a new authority, for this fleet alone. Whoever has this key can make boards: keep it off the server."
fi
[ -e "$folder/revoked.pem" ] || list_revoked

usage=clientAuth hosts=
for host; do # a board's certificate must not pass for a broker's
    case $host in *:*) kind=IP ;; *[!0-9.]*) kind=DNS ;; *) kind=IP ;; esac
    hosts="${hosts:+$hosts,}$kind:$host" usage=serverAuth
done
{
    echo "basicConstraints=critical,CA:FALSE"
    echo "extendedKeyUsage=$usage"
    [ -z "$hosts" ] || echo "subjectAltName=$hosts"
} >"$folder/$name.ext"
run req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$name" \
    -keyout "$folder/$name.key" -out "$folder/$name.csr"
run x509 -req -in "$folder/$name.csr" -CA "$folder/ca.crt" -CAkey "$folder/ca.key" -days "$days" -sha256 \
    -set_serial "0x$(openssl rand -hex 16)" -extfile "$folder/$name.ext" -out "$folder/$name.crt"
chmod 644 "$folder/ca.crt" "$folder/$name.crt"
until=$(openssl x509 -noout -enddate -in "$folder/$name.crt" | sed 's/notAfter=//')
case $usage$name in
serverAuth*) what="of a broker that is reached as $(echo "$hosts" | sed 's/[A-Z]*://g; s/,/, /g')" ;;
clientAuthmothership) what="of receivers, watch and send" ;;
*) what="of the board $name (its UPLINK_BOARD, or its host name)" ;;
esac
echo "$folder/$name.crt and $name.key: the certificate and key $what, valid until $until."
