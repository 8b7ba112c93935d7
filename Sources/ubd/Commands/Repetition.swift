import Targets

/// Refuses options that are given twice. ArgumentParser takes the last value and ignores the others: `ubd del -n 0 -n
/// 1` would delete one device of two, with status 0.
enum Repetition {
    /// Short names of options with a value, other than inputs, with their long names. (A test compares them with the
    /// commands.)
    static let letters = ["-n": "--number", "-t": "--target", "-q": "--queues", "-d": "--depth"]
    /// Those that mean something else in another command.
    static let lettersOf = ["list": ["-o": "--columns"], "mount": ["-o": "--options"], "top": ["-d": "--delay"]]
    /// Options without a value: giving one twice changes nothing.
    static let flags: Set<String> = [
        "--all", "-a", "--force", "--json", "--read-only", "--shared", "--restart-command", "--shrink", "--help", "-h",
        "--version", "--openmetrics", "--http", "--enabled",
    ]
    /// Those that have a value in other commands.
    static let flagsOf: [String: Set<String>] = ["list": ["--watch", "-w"]]

    static func refuse(_ arguments: [String]) throws(CommandFailure) {
        var given: [String: String] = [:]
        let own = arguments.first.flatMap { flagsOf[$0] } ?? []
        let ownLetters = arguments.first.flatMap { lettersOf[$0] } ?? [:]
        for (index, word) in arguments.enumerated() {
            if word == "--" { return }
            // A value cannot begin with a dash.
            guard word.hasPrefix("-"), word.count > 1, !own.contains(word), !isFlag(word) else { continue }
            let parts = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            let name = ownLetters[String(parts[0])] ?? long(String(parts[0]))
            let value = parts.count > 1 ? String(parts[1]) : index + 1 < arguments.count ? arguments[index + 1] : ""
            guard let earlier = given.updateValue(value, forKey: name) else { continue }
            throw CommandFailure(
                .usage, "Usage", "\(name) is given twice, as '\(earlier)' and as '\(value)'",
                remedy: "give it once, in a command for each")
        }
    }

    private static func isFlag(_ word: String) -> Bool {
        flags.contains(word)
            || TargetList.all.contains { target in
                target.options.contains { option in
                    if case .flag = option.kind { return "--" + option.name == word }
                    return false
                }
            }
    }

    private static func long(_ name: String) -> String {
        let input = TargetList.all.lazy.flatMap(\.inputs).first { $0.letter.map { "-\($0)" } == name }
        return input.map { "--" + $0.name } ?? letters[name] ?? name
    }
}
