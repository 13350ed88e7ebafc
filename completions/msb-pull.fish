# fish completion for msb-pull.

set -g __msb_pull_commands pull ls inspect verify prune df rm save export

function __msb_pull_command --description 'The command on the line; pull when its first word is an image; nothing yet when there is none'
    set -l words (commandline -opc)
    set -l skip no
    for word in $words[2..-1]
        if test $skip = yes
            set skip no
            continue
        end
        switch $word
            case --home --layers-dir --config --format --progress --color --as --policy --platform -j --jobs --ca-cert --authfile --require-signature --limit-rate --max-layer-size --max-entries --max-window --filter --sort --keep --min-free --path --size --stat --to --msb -o --output --lock --locked --lock-platform --without
                set skip yes
            case '-*'
            case '*'
                contains -- $word $__msb_pull_commands; and echo $word; or echo pull
                return
        end
    end
end

function __msb_pull_is --description 'Whether the line has one of these commands; pull also when there is none yet'
    set -l command (__msb_pull_command)
    test -z "$command"; and set command pull
    contains -- $command $argv
end

function __msb_pull_images --description 'Names in the store'
    set -l words (commandline -opc)
    set -l home
    for i in (seq (count $words))
        test "$words[$i]" = --home; and set home $words[(math $i + 1)]
        string match -q -- '--home=*' $words[$i]; and set home (string replace -- --home= '' $words[$i])
    end
    command $words[1] __complete images (commandline -ct) $home 2>/dev/null
end

function __msb_pull_sources --description 'Names in the store, or paths behind oci: and its like'
    set -l word (commandline -ct)
    for kind in oci: oci-archive: docker-archive:
        if string match -q -- "$kind*" $word
            __fish_complete_path (string replace -- $kind '' $word) | string replace -r '^' $kind
            return
        end
    end
    __msb_pull_images
end

complete -c msb-pull -f

complete -c msb-pull -n 'test -z (__msb_pull_command)' -a pull -d 'Pull images into the store'
complete -c msb-pull -n 'test -z (__msb_pull_command)' -a ls -d 'List the images of the store'
complete -c msb-pull -n 'test -z (__msb_pull_command)' -a inspect -d 'Show what an image is made of'
complete -c msb-pull -n 'test -z (__msb_pull_command)' -a verify -d 'Prove layers against the registry'
complete -c msb-pull -n 'test -z (__msb_pull_command)' -a prune -d 'Remove what no image needs'
complete -c msb-pull -n 'test -z (__msb_pull_command)' -a df -d 'Show what the store takes'
complete -c msb-pull -n 'test -z (__msb_pull_command)' -a rm -d 'Remove images'
complete -c msb-pull -n 'test -z (__msb_pull_command)' -a save -d 'Write images into an archive'
complete -c msb-pull -n 'test -z (__msb_pull_command)' -a export -d 'Write the merged tree of an image'
complete -c msb-pull -n 'test -z (__msb_pull_command)' -s V -l version -d 'Show the version'

complete -c msb-pull -n '__msb_pull_is pull' -a '(__msb_pull_sources)'
complete -c msb-pull -n '__msb_pull_is ls inspect verify rm save export' -a '(__msb_pull_images)'

complete -c msb-pull -n '__msb_pull_is pull' -s f -l force -d 'Fetch and unpack every layer again'
complete -c msb-pull -n '__msb_pull_is pull' -l as -x -d 'Name for a local image'
complete -c msb-pull -n '__msb_pull_is pull' -l lock -r -F -d 'Write a lock file'
complete -c msb-pull -n '__msb_pull_is pull' -l locked -r -F -d 'Pull what a lock file says'
complete -c msb-pull -n '__msb_pull_is pull' -l upgrade -d 'Renew the lock file'
complete -c msb-pull -n '__msb_pull_is pull' -l lock-platform -x -a 'linux/amd64 linux/arm64 linux/arm/v7 linux/riscv64 linux/ppc64le linux/s390x linux/386' -d 'Lock this platform too'
complete -c msb-pull -n '__msb_pull_is pull' -l policy -x -a 'missing always newer never' -d 'When to ask the registry'
complete -c msb-pull -n '__msb_pull_is pull' -l platform -x -a 'linux/amd64 linux/arm64 linux/arm/v7 linux/riscv64 linux/ppc64le linux/s390x linux/386' -d 'Platform to choose'
complete -c msb-pull -n '__msb_pull_is pull' -s j -l jobs -x -d 'Layers at once'
complete -c msb-pull -n '__msb_pull_is pull' -l plain-http -d 'Speak HTTP with the registry'
complete -c msb-pull -n '__msb_pull_is pull' -l tls-no-verify -d 'Accept any certificate'
complete -c msb-pull -n '__msb_pull_is pull' -l ca-cert -r -F -d 'Trust these authorities'
complete -c msb-pull -n '__msb_pull_is pull' -l creds-stdin -d 'Read user:password from standard input'
complete -c msb-pull -n '__msb_pull_is pull' -l anonymous -d 'Use no credentials'
complete -c msb-pull -n '__msb_pull_is pull verify export' -l authfile -r -F -d 'Credentials'
complete -c msb-pull -n '__msb_pull_is pull' -l require-signature -r -F -d 'Only images signed with this key'
complete -c msb-pull -n '__msb_pull_is pull' -l no-signature-check -d 'Check no signatures'
complete -c msb-pull -n '__msb_pull_is pull' -l allow-no-xattr -d 'Accept a file system without user attributes'
complete -c msb-pull -n '__msb_pull_is pull' -l limit-rate -x -d 'Most bytes a second'
complete -c msb-pull -n '__msb_pull_is pull' -l max-layer-size -x -d 'Largest unpacked layer'
complete -c msb-pull -n '__msb_pull_is pull' -l max-entries -x -d 'Most files in a layer'
complete -c msb-pull -n '__msb_pull_is pull' -l max-window -x -d 'Largest zstd window'
complete -c msb-pull -n '__msb_pull_is pull prune' -s n -l dry-run -d 'Say what would be done'

complete -c msb-pull -n '__msb_pull_is ls prune' -l filter -x -a 'reference= platform= until= incomplete=true' -d 'Only some images'
complete -c msb-pull -n '__msb_pull_is ls' -l sort -x -a 'name size pulled' -d Order
complete -c msb-pull -n '__msb_pull_is ls' -l no-trunc -d 'Whole digests'

complete -c msb-pull -n '__msb_pull_is inspect' -l layers -d 'Just the layer directories'
complete -c msb-pull -n '__msb_pull_is inspect' -l lowerdir -d 'One string for fuse-overlayfs'
complete -c msb-pull -n '__msb_pull_is inspect' -l files -d 'The merged tree'

complete -c msb-pull -n '__msb_pull_is verify' -l quick -d 'All but the contents of files'
complete -c msb-pull -n '__msb_pull_is verify' -l repair -d 'Fetch damaged layers again'

complete -c msb-pull -n '__msb_pull_is prune' -s a -l all -d 'Also remove images'
complete -c msb-pull -n '__msb_pull_is prune' -l keep -x -d 'Remove images until the store takes this'
complete -c msb-pull -n '__msb_pull_is prune' -l min-free -x -d 'Remove images until this is free'
complete -c msb-pull -n '__msb_pull_is prune' -s y -l yes -d 'Do not ask'
complete -c msb-pull -n '__msb_pull_is prune' -l no-wait -d 'Give up instead of waiting'

complete -c msb-pull -n '__msb_pull_is save' -s o -l output -r -F -d 'Where to write'
complete -c msb-pull -n '__msb_pull_is save' -l format -x -a 'oci docker text json' -d 'Kind of archive'
complete -c msb-pull -n '__msb_pull_is save' -l without -r -F -a '(__msb_pull_images)' -d 'What the other side has'
complete -c msb-pull -n '__msb_pull_is export' -s o -l output -r -F -d 'Where to write'
complete -c msb-pull -n '__msb_pull_is export' -l format -x -a 'tar dir erofs squashfs ext4 text json' -d 'What to write'
complete -c msb-pull -n '__msb_pull_is export' -l stat -x -a 'native containers microsandbox' -d 'How a folder keeps owners'
complete -c msb-pull -n '__msb_pull_is export' -l path -x -d 'Only this file or folder'
complete -c msb-pull -n '__msb_pull_is export' -l size -x -d 'Size of an ext4 file system'
complete -c msb-pull -n '__msb_pull_is export' -s f -l force -d 'Replace what exists'
complete -c msb-pull -n '__msb_pull_is pull' -l to -x -a microsandbox -d 'Hand to another program'
complete -c msb-pull -n '__msb_pull_is export' -l to -x -a 'microsandbox podman' -d 'Hand to another program'
complete -c msb-pull -n '__msb_pull_is pull export' -l msb -r -F -d 'Program of Microsandbox'
complete -c msb-pull -n 'not __msb_pull_is save export' -l format -x -a 'text json' -d 'What standard output carries'

complete -c msb-pull -l home -r -a '(__fish_complete_directories)' -d 'Where images live'
complete -c msb-pull -l layers-dir -r -a '(__fish_complete_directories)' -d 'Where layers live'
complete -c msb-pull -l config -r -F -d 'Configuration file'
complete -c msb-pull -s q -l quiet -d 'No progress, no summary'
complete -c msb-pull -s v -l verbose -d 'Log lines instead of bars; twice: HTTP too'
complete -c msb-pull -l progress -x -a 'auto bars plain json none' -d 'How progress is shown'
complete -c msb-pull -l color -x -a 'auto always never' -d Colour
complete -c msb-pull -l debug -d 'Show where an error arose'
complete -c msb-pull -s h -l help -d 'Show help'
