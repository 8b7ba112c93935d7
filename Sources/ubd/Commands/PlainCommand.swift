import ArgumentParser
import BrokerInterface

/// A command that `ubd` reads without ArgumentParser when its line is plain: each option once, with a valid value.
/// ArgumentParser costs ten million instructions, most of them for the runtime's search for conformances. It reads every
/// other line, and has help, errors and completion. Even its property wrappers alone cost a million, so such a command has none.
protocol PlainCommand: Performable {
    /// Takes its options from the line; nil when they do not make a command.
    init?(_ line: inout PlainLine)
}

/// The command line of a plain command for ArgumentParser.
protocol PlainArguments: UBDCommand {
    associatedtype Command: PlainCommand
    var command: Command { get }
}

extension PlainArguments {
    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        try command.perform(environment)
    }
}

/// The arguments after a command's name, taken option by option.
struct PlainLine {
    /// nil: taken.
    private var arguments: [String?]
    private var isPlain = true

    /// The command of these arguments; nil when ArgumentParser has to parse them.
    static func command(_ arguments: [String]) -> (any Performable)? {
        switch arguments.first {
        case "add": command(AddCommand.self, arguments)
        case "del": command(DeleteCommand.self, arguments)
        default: nil
        }
    }

    private static func command<Command: PlainCommand>(_: Command.Type, _ arguments: [String]) -> Command? {
        var line = PlainLine(arguments: arguments.dropFirst().map { $0 })
        guard let command = Command(&line), line.isPlain, line.arguments.allSatisfy({ $0 == nil }) else { return nil }
        return command
    }

    /// Takes a flag.
    mutating func flag(_ name: String, _ short: String? = nil) -> Bool {
        guard let index = index(name, short) else { return false }
        arguments[index] = nil
        return true
    }

    /// Takes an option with its value.
    mutating func text(_ name: String, _ short: String? = nil) -> String? {
        guard let index = index(name, short) else { return nil }
        guard index + 1 < arguments.count, let value = arguments[index + 1], !value.isEmpty,
            !value.hasPrefix("-")
        else {
            isPlain = false
            return nil
        }
        arguments[index] = nil
        arguments[index + 1] = nil
        return value
    }

    /// Takes an option that may have a value; empty: it has none.
    mutating func textOrFlag(_ name: String) -> String? {
        guard let index = index(name, nil) else { return nil }
        arguments[index] = nil
        // Where another option stood before it was taken there is no value.
        guard index + 1 < arguments.count, let value = arguments[index + 1], !value.hasPrefix("-") else { return "" }
        arguments[index + 1] = nil
        return value
    }

    /// Takes an option whose value is not just text.
    mutating func value<Value: ExpressibleByArgument>(_ name: String, _ short: String? = nil) -> Value? {
        guard let text = text(name, short) else { return nil }
        let value = Value(argument: text)
        if value == nil { isPlain = false }
        return value
    }

    private func index(_ name: String, _ short: String?) -> Int? {
        arguments.firstIndex { $0 == name || short != nil && $0 == short }
    }
}

extension AddCommand {
    init?(_ line: inout PlainLine) {
        guard let target = line.text("--target", "-t") else { return nil }
        self.target = target
        number = line.value("--number", "-n")
        ofTarget = TargetArguments(&line)
        queues = line.value("--queues", "-q") ?? AddPlan.defaultQueues
        depth = line.value("--depth", "-d")
        maxIOSize = line.value("--max-io-size")
        readOnly = line.flag("--read-only")
        recovery = line.text("--recovery")
        ioTimeout = line.value("--io-timeout")
        mode = line.text("--mode")
        cpus = line.text("--cpus")
        shared = line.flag("--shared")
        partition = line.text("--partition")
        dial = DialOptions(&line)
        key = KeyOptions(&line)
        layer = LayerOptions(&line)
        restartCommand = line.flag("--restart-command")
        server = []
        name = line.text("--name")
        enable = line.textOrFlag("--enable")
        asJSON = line.flag("--json")
    }
}

extension DeleteCommand {
    init?(_ line: inout PlainLine) {
        number = line.value("--number", "-n")
        generation = line.value("--generation")
        all = line.flag("--all", "-a")
        force = line.flag("--force")
        asJSON = line.flag("--json")
        guard (number != nil) != all, generation == nil || number != nil else { return nil }
    }
}
