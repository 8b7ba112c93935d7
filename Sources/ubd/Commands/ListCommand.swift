import ArgumentParser
import BrokerInterface
import Glibc
import Targets
import Varlink

/// `ubd list`: the caller's devices.
struct ListCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "list",
        abstract: "List your devices (as root: everyone's).",
        discussion: """
            EXAMPLES
              ubd list
              ubd list -n 0 --json | jq '.[0].state'
              ubd list -o id,state,worker      only these columns, without lines below a device
              ubd list -w                      on a terminal the present list, else each change as it comes
              ubd list --watch --json          one JSON object a line
              ubd list --enabled               the devices that come back by themselves: 'ubd enable'

            STATE is one of
              adding, starting   not ready yet
              live               serves
              recovering         the worker died or is being replaced; I/O waits
              deleting           is being deleted
              unmanaged          serves, but an earlier broker started its worker: when that
                                 dies, its file must be brought again ('ubd recover')
              stuck              its worker can't be killed, or the kernel does not stop it
              failed             its worker died; requests fail until the device is deleted
            COLUMNS: \(ListColumn.names).
            QUEUES is queues x depth. A line below a device says since when and why it is not live.
            """)

    @Option(
        name: [.customShort("n"), .long], help: ArgumentHelp("Only this device.", valueName: "id"))
    var number: UInt32?

    @Flag(
        name: [.customShort("w"), .customLong("watch")],
        help: "Go on: keep the list up to date on a terminal, else print each change of a state as it comes.")
    var watches = false

    @Option(
        name: [.customShort("o"), .customLong("columns")],
        help: ArgumentHelp("Show these columns, see above.", valueName: "name,..."))
    var columnNames: ColumnNames?

    @Flag(name: .customLong("enabled"), help: "The devices that come back by themselves, with their units.")
    var ofFiles = false

    @OptionGroup var output: OutputOptions

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        if ofFiles { return try performEnabled(environment) }
        let columns = try columns()
        if watches {
            if !output.asJSON, environment.screen() != nil { return try watchOnScreen(environment, columns) }
            guard columns == nil else {
                throw CommandFailure(
                    .usage, "Usage",
                    "-o does not go with --watch where the output is no terminal: there each line is a change",
                    remedy: "leave one of them out")
            }
            return try watch(environment)
        }
        let devices = try BrokerClient(environment: environment).list(id: number).sorted { $0.id < $1.id }
        if let number, devices.isEmpty { throw Self.noSuchDevice(number) }
        if output.asJSON {
            environment.console.out(JSON.array(devices.map(\.json)).indentedText)
            return .success
        }
        guard !devices.isEmpty else {
            environment.console.error("ubd: note: you have no devices")
            return .success
        }
        for line in Self.lines(devices, environment.host, columns) { environment.console.out(line) }
        return .success
    }

    /// The columns of `-o`; nil without it.
    private func columns() throws(CommandFailure) -> [ListColumn]? {
        guard let columnNames else { return nil }
        guard !output.asJSON else {
            throw CommandFailure(
                .usage, "Usage", "-o does not go with --json, which prints everything", remedy: "leave one of them out")
        }
        return try columnNames.columns()
    }

    /// The list, drawn again after changes, until somebody ends it or the broker ends. Nothing but the text of the screen changes,
    /// so there is nothing to restore.
    private func watchOnScreen(
        _ environment: CommandEnvironment, _ columns: [ListColumn]?
    ) throws(CommandFailure) -> ExitStatus {
        let (client, console) = (BrokerClient(environment: environment), environment.console)
        var failure: CommandFailure?
        var (isStale, isComplete) = (true, false)
        var drawn: (screen: Screen, at: UInt64)?
        // Asked after each reply and every second.
        let isWanted = {
            guard isComplete, let screen = environment.screen() else { return console.lost == nil }
            let now = environment.now()
            // Many changes at once are drawn together.
            let isDue = drawn.map { now - $0.at >= Self.nanosecondsPerDrawing } ?? true
            guard isDue, isStale || drawn?.screen != screen else { return console.lost == nil }
            do throws(CommandFailure) {
                let devices = try client.list().filter { number == nil || $0.id == number }.sorted { $0.id < $1.id }
                let lines = devices.isEmpty ? ["no devices"] : Self.lines(devices, environment.host, columns)
                console.draw(screen.text(lines))
            } catch {
                failure = error
                return false
            }
            (isStale, drawn) = (false, (screen, now))
            return console.lost == nil
        }
        do throws(CommandFailure) {
            try client.monitor(MonitorRequest(ids: number.map { [$0] }), whileWanted: isWanted) { change in
                if change == nil { isComplete = true }
                isStale = true
            }
        } catch {
            failure = error
        }
        // Below the list.
        if drawn != nil { console.out("") }
        if let failure { throw failure }
        return .failed
    }

    /// Between two drawings.
    private static let nanosecondsPerDrawing: UInt64 = 200_000_000

    /// Until somebody ends it, nobody reads it any more, or the broker ends.
    private func watch(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        let console = environment.console
        var isEmpty = true
        let isWanted = {
            // As long as nothing is written only a look tells that nobody would read it.
            console.wait(milliseconds: 1)
            return console.lost == nil
        }
        try BrokerClient(environment: environment).monitor(
            MonitorRequest(ids: number.map { [$0] }), whileWanted: isWanted
        ) { change in
            if let change {
                isEmpty = false
                console.out(output.asJSON ? change.json.text : Self.line(change))
            } else if isEmpty {
                console.error("ubd: note: you have no devices yet")
            }
        }
        return .failed
    }

    /// "2026-11-26 07:05:48  ubdb0  recovering  its worker …".
    static func line(_ change: DeviceChange) -> String {
        let state = change.state?.rawValue ?? DeviceChange.gone
        let words = ["\(localTime(change.since))  ubdb\(change.id)  \(state)"] + [change.reason].compactMap { $0 }
        return words.joined(separator: "  ").printable
    }

    static func noSuchDevice(_ id: UInt32) -> CommandFailure {
        CommandFailure(
            .noSuchDevice, BrokerAPI.interface + ".NoSuchDevice", "you have no device \(id)",
            remedy: "see 'ubd list'")
    }

    /// A later device has the number of the one that was meant.
    static func otherGeneration(_ device: Device, _ wanted: UInt64) -> CommandFailure {
        CommandFailure(
            .noSuchDevice, BrokerAPI.interface + ".NoSuchDevice",
            "device \(device.id) is of generation \(device.generation), not \(wanted): another one has its number now",
            remedy: "see 'ubd list --json'")
    }

    /// The lines below a device: why it does not serve, how its connections are encrypted, and how its workers died.
    private static func notes(_ device: Device) -> [String] {
        var notes: [String] = []
        if let reason = device.reason {
            let since = device.state == .live ? device.waitsSince ?? 0 : device.since
            notes.append(since <= 0 ? reason : "since \(localTime(since)): \(reason)")
        }
        if let cipher = device.cipher { notes.append("its connections are encrypted: \(cipher)") }
        if let keeping = keeping(device) { notes.append(keeping) }
        if let last = device.lastDeath {
            let count = device.deaths == 1 ? "1 worker has" : "\(device.deaths) workers have"
            notes.append("\(count) died; the last \(last)")
        }
        if device.workerOutdated == true {
            let version = device.workerVersion.map { " (\($0))" } ?? ""
            notes.append("its worker\(version) runs another program than the installed one: \(upgrade(device))")
        }
        return notes
    }

    /// That nobody would make a lost connection again; nil for a device that has a keeper, or needs none.
    private static func keeping(_ device: Device) -> String? {
        let target = TargetList.all.first { $0.name == device.target }
        guard target?.needsFreshInputs == true, device.keeper == nil, device.recovery != .none else { return nil }
        switch device.state {
        case .recovering: return "it has no keeper: 'ubd recover -n \(device.id)' makes a new connection, and a keeper"
        case .live:
            return "it has no keeper: after a lost connection it waits for 'ubd recover -n \(device.id)'"
        default: return nil
        }
    }

    /// How a device gets the installed program: `ubd upgrade` refuses a device that cannot get a second worker.
    static func upgrade(_ device: Device) -> String {
        switch device.recovery {
        case .none: "with --recovery none only a device that is added again gets it"
        case .reissue: "'ubd upgrade -n \(device.id)'"
        case .queue, .fail:
            device.mode.isBatch
                ? "in batch mode with --recovery \(device.recovery.rawValue) only a device that is added again gets it"
                : "'ubd upgrade -n \(device.id)', on Linux 6.16 or later"
        }
    }

    /// "2026-11-26 07:05:48", in the caller's time zone.
    static func localTime(_ seconds: Int64) -> String {
        var (time, parts) = (time_t(seconds), tm())
        localtime_r(&time, &parts)
        var text = [CChar](repeating: 0, count: 64)
        let count = strftime(&text, text.count, "%Y-%m-%d %H:%M:%S", &parts)
        return String(decoding: text[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    /// The table; without `columns` the usual ones, cut to a terminal's width, with the notes on each device below it.
    static func lines(_ devices: [Device], _ host: any Machine, _ columns: [ListColumn]? = nil) -> [String] {
        let shown = columns ?? ListColumn.usual
        var table = Table(header: shown.map(\.header))
        // Who names columns wants them whole.
        if columns != nil { table.width = .max }
        let owners = shown.contains(.owner) ? host.userNames(of: Set(devices.map(\.owner))) : [:]
        table.rows = devices.map { device in shown.map { $0.cell(device, owner: owners[device.owner]) } }
        var lines = table.lines
        guard columns == nil else { return lines }
        for (index, device) in devices.enumerated().reversed() {
            for note in notes(device).reversed() { lines.insert("  \(note.printable)", at: index + 2) }
        }
        return lines
    }
}
