//! The scripts by which shells ask for candidates. `PROGRAM` stands for the name of the program.

use clap_complete::Shell;

/// Bash divides words at `@`, `=` and `:` too, and replaces only the part behind the last of them. So the script takes
/// the words of the line itself, and takes off what the shell keeps. An `@` itself belongs to what is replaced.
const BASH: &str = r#"# Completion of PROGRAM for bash. Names of pools, images and snapshots come from the store.
_PROGRAM_complete() {
    local line=${COMP_LINE:0:COMP_POINT} current kept
    local -a words
    COMPREPLY=()
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=('')
    ((${#words[@]} > 1)) || return 0
    current=${words[-1]}
    kept=${current%"${current##*["$COMP_WORDBREAKS"]}"}
    kept=${kept%@}
    mapfile -t COMPREPLY < <("${words[0]}" complete -- "${words[@]:1}" 2>/dev/null)
    COMPREPLY=("${COMPREPLY[@]#"$kept"}")
    if ((${#COMPREPLY[@]} == 1)) && [[ ${COMPREPLY[0]} == *[/@=] ]]; then
        compopt -o nospace 2>/dev/null
    fi
    return 0
}
complete -F _PROGRAM_complete PROGRAM
"#;

const ZSH: &str = r#"#compdef PROGRAM
# Completion of PROGRAM for zsh. Names of pools, images and snapshots come from the store.
_PROGRAM_complete() {
    local -a found
    found=("${(@f)$("${(Q)words[1]}" complete -- "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
    found=(${found:#})
    (( $#found )) || return 1
    compadd -S '' -- ${(M)found:#*[/@=]}
    compadd -- ${found:#*[/@=]}
    return 0
}
if [ "$funcstack[1]" = "_PROGRAM" ]; then
    _PROGRAM_complete "$@"
else
    compdef _PROGRAM_complete PROGRAM
fi
"#;

const FISH: &str = r#"# Completion of PROGRAM for fish. Names of pools, images and snapshots come from the store.
function __PROGRAM_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    command $words[1] complete -- $words[2..-1] "$current" 2>/dev/null
end
complete -c PROGRAM -f -a '(__PROGRAM_complete)'
"#;

/// The script of a shell, for those that ask for names.
pub fn script(shell: Shell, program: &str) -> Option<String> {
    let script = match shell {
        Shell::Bash => BASH,
        Shell::Zsh => ZSH,
        Shell::Fish => FISH,
        _ => return None,
    };
    Some(script.replace("PROGRAM", program))
}
