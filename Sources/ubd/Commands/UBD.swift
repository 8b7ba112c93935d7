import ArgumentParser
import BrokerInterface
import Numbers

/// A command of `ubd`.
protocol Performable {
    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus
}

/// A command whose properties ArgumentParser fills.
protocol UBDCommand: ParsableCommand, Performable {}

/// The command without a subcommand: shows the help.
struct UBD: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "ubd",
        abstract: "Block devices from userspace, for unprivileged users (Linux ublk).",
        discussion: """
            EXAMPLES
              truncate -s 1G 1.img
              ubd add -t loop -f 1.img         prints the new device, as in /dev/ubdb0
              mkfs.ext4 /dev/ubdb0             the device belongs to you
              ubd list                         your devices and what they do
              ubd stats --watch                requests and bytes per second
              ubd top                          all of that on the whole screen, with keys
              ubd events                       each change of a device, as it comes
              ubd del -n 0                     flushes and removes it
              ubd doctor                       what this host lacks, and how to get it

            SIZES are bytes, or a number with K, M, G or T (powers of 1024).

            EXIT STATUS
            \(ExitStatus.allCases.map { "  \($0.rawValue)  \($0.meaning)" }.joined(separator: "\n"))

            ENVIRONMENT
              \(BrokerAPI.socketVariable)   the broker's socket (default \(BrokerAPI.socketPath))

            Completions for your shell: ubd --generate-completion-script bash (or zsh, fish).
            """,
        version: "ubd \(UBDVersion.text)",
        subcommands: [
            AddArguments.self, DeleteArguments.self, ListCommand.self, UpgradeCommand.self, ResizeCommand.self,
            RecoverCommand.self, EnableCommand.self, DisableCommand.self, FaultCommand.self, MountCommand.self,
            UnmountCommand.self, StatsCommand.self, TopCommand.self, EventsCommand.self, PartitionsCommand.self,
            InfoCommand.self, FeaturesCommand.self,
            DoctorCommand.self, ProvideCommand.self, NameHolderCommand.self,
        ])
}

/// Bytes on the command line: a number, or one with K, M, G or T. ArgumentParser can only say that a value is invalid,
/// so `checked` reports an invalid size.
struct ByteCount: ExpressibleByArgument, Equatable {
    /// As typed.
    let text: String
    /// 0 when the text is no size.
    let bytes: UInt64
    private let isValid: Bool

    init(argument: String) {
        text = argument
        let bytes = ByteSize.typed(argument)
        // A value beyond the maximum is reported with the text that was typed, not with the maximum.
        isValid = bytes.map { $0 < ByteSize.maximum } ?? false
        self.bytes = isValid ? bytes ?? 0 : 0
    }

    func checked(_ option: String) throws(CommandFailure) {
        if isValid { return }
        throw CommandFailure(
            .usage, "Usage", "\(option) can not be '\(text)'",
            remedy: "give bytes, or a whole number with K, M, G or T (powers of 1024), as in 1536M for one and a half G"
        )
    }
}

/// The options of every command that can print JSON.
struct OutputOptions: ParsableArguments {
    @Flag(name: .customLong("json"), help: "Print JSON, errors too.")
    var asJSON = false
}
