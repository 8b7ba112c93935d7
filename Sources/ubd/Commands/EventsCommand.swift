import ArgumentParser
import BrokerInterface
import Glibc
import Varlink

/// `ubd events`: what becomes of the caller's devices, for programs.
struct EventsCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "events",
        abstract: "Tell each change of your devices until it is ended (as root: everyone's).",
        discussion: """
            EXAMPLES
              ubd events                       a line for each change, as it comes
              ubd events -n 0                  only of device 0, and of later devices with its number
              ubd events --json | jq 'select(.state == "failed")'

            LINES
              time  ubdbN   STATE  reason      STATE as in 'ubd list', or 'gone': the device does not exist any more
              time  broker  connected          the present state of each device follows
              time  broker  complete           all of them have been told; what follows are changes
              time  broker  lost  reason       the broker went away: this command waits for it
            After 'lost' comes 'connected' when the broker is back: each state is told anew, and devices that ended
            meanwhile are told as 'gone'. States in between are not told. With --json a line about the broker is an object
            with 'broker', every other one an object with 'id', 'generation' and 'state'.
            It runs until a signal ends it, or nobody reads its output.
            """)

    @Option(
        name: [.customShort("n"), .long], help: ArgumentHelp("Only devices with this number.", valueName: "id"))
    var number: UInt32?

    @OptionGroup var output: OutputOptions

    /// Milliseconds between two looks for a broker that went away.
    private static let pauses: (first: UInt64, longest: UInt64) = (100, 2000)

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        let client = BrokerClient(environment: environment)
        let console = environment.console
        var teller = EventTeller(number: number, asJSON: output.asJSON, console: console)
        // A device that does not exist at the beginning is an error; later it is one that is gone.
        var request = MonitorRequest(ids: number.map { [$0] })
        var pause = Self.pauses.first
        let isWanted = {
            // As long as nothing is written only a look tells that nobody would read it.
            console.wait(milliseconds: 1)
            return console.lost == nil
        }
        while isWanted() {
            do throws(CommandFailure) {
                try client.monitor(request, whileWanted: isWanted) { teller.hear($0) }
            } catch {
                guard teller.hasBegun, Self.mayPass(error) else { throw error }
                if teller.isConnected { pause = Self.pauses.first }
                teller.lose(error)
                request = MonitorRequest()
                environment.pauseWatching(pause)
                pause = min(pause * 2, Self.pauses.longest)
            }
        }
        return .failed
    }

    /// A broker that starts again answers later. Whoever listens in its place, or does not permit it, stays.
    private static func mayPass(_ failure: CommandFailure) -> Bool {
        ["BrokerNotReachable", "NoAnswer"].contains(failure.name) || failure.passesAfter != nil
    }
}

/// Writes the lines of `ubd events`. It remembers the devices that it told of, so that it can tell which of them ended while
/// there was no broker.
struct EventTeller {
    private let number: UInt32?
    private let asJSON: Bool
    private let console: any Console
    /// The generations of the devices that exist, as far as they were told.
    private var told: [UInt32: UInt64] = [:]
    /// Those of them that this broker has not told of yet.
    private var unconfirmed: [UInt32: UInt64] = [:]
    /// A broker has told something, ever.
    private(set) var hasBegun = false
    /// The present broker has told something.
    private(set) var isConnected = false

    init(number: UInt32?, asJSON: Bool, console: any Console) {
        self.number = number
        self.asJSON = asJSON
        self.console = console
    }

    /// What the broker told; nil when the present states have been told.
    mutating func hear(_ change: DeviceChange?) {
        if !isConnected {
            (hasBegun, isConnected, unconfirmed) = (true, true, told)
            tellBroker("connected")
        }
        guard let change else {
            for (id, generation) in unconfirmed.sorted(by: { $0.key < $1.key }) { tellEnd(id, generation) }
            unconfirmed = [:]
            tellBroker("complete")
            return
        }
        guard number == nil || number == change.id else { return }
        if let before = unconfirmed.removeValue(forKey: change.id), before != change.generation {
            tellEnd(change.id, before)
        }
        told[change.id] = change.state == nil ? nil : change.generation
        tell(change)
    }

    /// The broker went away. It is told once, however often the broker is looked for.
    mutating func lose(_ failure: CommandFailure) {
        guard isConnected else { return }
        isConnected = false
        tellBroker("lost", reason: failure.message)
    }

    private mutating func tellEnd(_ id: UInt32, _ generation: UInt64) {
        told[id] = nil
        tell(
            DeviceChange {
                ($0.id, $0.generation, $0.state) = (id, generation, nil)
                ($0.reason, $0.since) = ("it ended while the broker was away", Int64(time(nil)))
            })
    }

    private func tell(_ change: DeviceChange) {
        console.out(asJSON ? change.json.text : ListCommand.line(change))
    }

    private func tellBroker(_ what: String, reason: String? = nil) {
        let now = Int64(time(nil))
        guard !asJSON else {
            let members: [(String, JSON?)] = [
                ("broker", .string(what)), ("reason", reason.map { .string($0) }), ("since", .integer(now)),
            ]
            return console.out(JSON.record(members).text)
        }
        let words = ["\(ListCommand.localTime(now))  broker  \(what)"] + [reason].compactMap { $0 }
        console.out(words.joined(separator: "  ").printable)
    }
}
