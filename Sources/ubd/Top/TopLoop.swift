import BrokerInterface
import SystemCalls

/// `ubd top` on a terminal: looks, draws, and does what the keys say. It outlives the broker: a new one is asked in its place.
struct TopLoop {
    private var view: TopView
    private var sampler: TopSampler
    private let environment: CommandEnvironment
    private let number: UInt32?
    /// Until when no sample is taken, in monotonic nanoseconds.
    private var due: UInt64 = 0

    init(_ view: TopView, number: UInt32?, _ environment: CommandEnvironment) {
        self.view = view
        self.number = number
        self.environment = environment
        sampler = TopSampler(number: number)
    }

    mutating func run() throws(CommandFailure) -> ExitStatus {
        // What cannot begin at all says so on the terminal as it was.
        _ = try sampler.sample(BrokerClient(environment: environment), opened: [], now: environment.now)
        due = environment.now() + min(view.interval, 500) * 1_000_000
        var terminal: TopTerminal
        do throws(SystemError) { terminal = try TopTerminal.take() } catch {
            throw CommandFailure(
                .failed, "NoTerminal", "there is no terminal to type on: \(error)",
                remedy: "run it on a terminal, or give --count for tables without keys")
        }
        if let number { view.open(number) }
        draw(anew: false)
        while environment.console.lost == nil {
            let now = environment.now()
            if now >= due, !view.isPaused { look(now) }
            let wait = view.isPaused ? 1000 : (max(due, environment.now()) - environment.now()) / 1_000_000 + 1
            let events = terminal.events(within: min(wait, 1000))
            guard let reaction = react(events) else { return .success }
            if reaction == .suspend {
                terminal.suspend()
                draw(anew: true)
            } else if !events.isEmpty {
                draw(anew: reaction == .drawAnew)
            }
        }
        return .failed
    }

    /// What the events ask for most; nil: the end.
    private mutating func react(_ events: [TopTerminal.Event]) -> TopView.Reaction? {
        var result = TopView.Reaction.nothing
        for event in events {
            switch event {
            case .end: return nil
            case .resized: result = .drawAnew
            case .key(let key):
                switch view.press(key) {
                case .nothing: break
                case .quit: return nil
                case .sampleNow: due = 0
                case let other: result = other
                }
            }
        }
        return result
    }

    private mutating func look(_ now: UInt64) {
        var asked = environment
        // A broker that hangs must not hold the keys for longer than somebody waits.
        asked.callSeconds = min(environment.callSeconds, 3)
        do throws(CommandFailure) {
            let sample = try sampler.sample(
                BrokerClient(environment: asked), opened: view.opened, now: environment.now)
            if let sample { view.take(sample) }
        } catch {
            view.trouble = error.line
        }
        due = environment.now() + view.interval * 1_000_000
        draw(anew: false)
    }

    private mutating func draw(anew: Bool) {
        guard let screen = environment.screen() else { return }
        var lines = view.lines(screen, time: String(ListCommand.localTime(environment.date()).suffix(8)))
        // Reverse video (ECMA-48 SGR 7) is no colour, and every terminal has it.
        let header = view.headerLine
        for index in lines.indices { lines[index] = String(lines[index].prefix(screen.columns)) }
        if lines.count > header { lines[header] = "\u{1B}[7m" + lines[header] + "\u{1B}[0m" }
        environment.console.draw((anew ? "\u{1B}[2J" : "") + Screen.whole(lines))
    }
}
