# bash completion for msb-pull. Works with and without the bash-completion package.

# Sets COMPREPLY to the given words that begin with $1, without the part that readline holds already: it breaks words
# at ":", "@" and "=", image names do not.
_msb_pull_reply() {
    local prefix=$1 held=''
    shift
    local breaks=${COMP_WORDBREAKS//[^:@=]/}
    if [[ -n $breaks && $prefix == *["$breaks"]* ]]; then
        held=${prefix%"${prefix##*["$breaks"]}"}
        # An "@" belongs to the word it begins: readline keeps it for host names.
        held=${held%@}
    fi
    local word
    for word in "$@"; do
        [[ $word == "$prefix"* ]] && COMPREPLY+=("${word#"$held"}")
    done
}

_msb_pull_paths() { # prefix of the word that is no path ("oci:"), start of the path, -d or -f
    local -a paths
    mapfile -t paths < <(compgen "$3" -- "$2")
    compopt -o filenames 2>/dev/null
    local path
    local -a words=()
    for path in "${paths[@]}"; do
        words+=("$1$path")
    done
    _msb_pull_reply "$1$2" "${words[@]}"
}

_msb_pull_images() { # word to complete, home
    local -a names
    mapfile -t names < <("${COMP_WORDS[0]}" __complete images "$1" ${2:+"$2"} 2>/dev/null)
    _msb_pull_reply "$1" "${names[@]}"
}

_msb_pull() {
    COMPREPLY=()
    local commands='pull ls inspect verify prune df rm save export'
    local every='--home --layers-dir --config --format -q --quiet -v --verbose --progress --color --debug -h --help'
    local -A options=(
        [pull]='-f --force --as --to --msb -n --dry-run --lock --locked --upgrade --lock-platform --policy --platform -j --jobs
            --plain-http --tls-no-verify --ca-cert --creds-stdin --anonymous --authfile --require-signature
            --no-signature-check --allow-no-xattr --limit-rate --max-layer-size --max-entries --max-window'
        [ls]='--filter --sort --no-trunc'
        [inspect]='--layers --lowerdir --files'
        [verify]='--quick --repair --authfile'
        [prune]='-a --all --filter --keep --min-free -y --yes -n --dry-run --no-wait'
        [df]=''
        [rm]=''
        [save]='-o --output --without'
        [export]='-o --output --path --size --stat -f --force --to --msb --authfile'
    )

    # The words up to the cursor, split at blanks alone.
    local line=${COMP_LINE:0:COMP_POINT} cur='' prev='' command='' home='' word
    local -a words
    read -ra words <<<"$line"
    [[ $line == *[[:blank:]] ]] || { cur=${words[-1]}; unset 'words[-1]'; }

    local takes_value=' --home --layers-dir --config --format --progress --color --as --policy --platform -j --jobs
        --ca-cert --authfile --require-signature --limit-rate --max-layer-size --max-entries --max-window --filter --sort
        --keep --min-free --path --size --stat --to --msb -o --output
        --lock --locked --lock-platform --without '
    takes_value=${takes_value//[$'\n\t']/ }
    for word in "${words[@]:1}"; do
        case $prev in
            --home) home=$word ;;
        esac
        if [[ $takes_value == *" $prev "* && -n $prev ]]; then
            prev=''
            continue
        fi
        [[ $word == --home=* ]] && home=${word#*=}
        [[ $word != -* && -z $command ]] && command=$word
        prev=$word
    done
    home=${home/#\~\//$HOME/}
    local bare=''
    if [[ -z $command || " $commands " != *" $command "* ]]; then
        [[ -z $command ]] && bare=yes
        command=pull
    fi

    local option=$prev value=$cur lead=''
    if [[ $cur == --*=* ]]; then
        option=${cur%%=*} value=${cur#*=} lead=$option=
    elif [[ -z $prev || $takes_value != *" $prev "* ]]; then
        option=''
    fi

    local -a choices=()
    case $option in
        --home | --layers-dir) _msb_pull_paths "$lead" "$value" -d; return ;;
        --config | --ca-cert | --authfile | --msb | --require-signature | --lock | --locked | --without | -o | --output) _msb_pull_paths "$lead" "$value" -f; return ;;
        --format)
            choices=(text json)
            [[ $command == save ]] && choices+=(oci docker)
            [[ $command == export ]] && choices+=(tar dir erofs squashfs ext4)
            ;;
        --progress) choices=(auto bars plain json none) ;;
        --color) choices=(auto always never) ;;
        --policy) choices=(missing always newer never) ;;
        --platform | --lock-platform) choices=(linux/amd64 linux/arm64 linux/arm/v7 linux/riscv64 linux/ppc64le linux/s390x linux/386) ;;
        --stat) choices=(native containers microsandbox) ;;
        --to) choices=(microsandbox podman) ;;
        --sort) choices=(name size pulled) ;;
        --filter)
            choices=(reference= platform= until= incomplete=true)
            compopt -o nospace 2>/dev/null
            ;;
        ?*) return ;;
    esac
    if [[ -n $option ]]; then
        _msb_pull_reply "$cur" "${choices[@]/#/$lead}"
        return
    fi

    if [[ $cur == -* ]]; then
        local own=${options[$command]}
        [[ -n $bare ]] && own+=' -V --version'
        # shellcheck disable=SC2086 # the lists are meant to be split
        _msb_pull_reply "$cur" $own $every
        return
    fi
    case $cur in
        oci:*) _msb_pull_paths oci: "${cur#oci:}" -d; return ;;
        oci-archive:*) _msb_pull_paths oci-archive: "${cur#oci-archive:}" -f; return ;;
        docker-archive:*) _msb_pull_paths docker-archive: "${cur#docker-archive:}" -f; return ;;
    esac
    # shellcheck disable=SC2086
    [[ -n $bare ]] && _msb_pull_reply "$cur" $commands
    [[ $command != prune && $command != df ]] && _msb_pull_images "$cur" "$home"
}

complete -F _msb_pull msb-pull
