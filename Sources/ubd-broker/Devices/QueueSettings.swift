/// The settings of a new device's queue in /sys/block/ublkbN/queue. Before it changes one, the block layer waits for
/// all requests to end and takes no new one; a worker may hold one forever. So only an undertaker's child writes them
/// (`SettingsWriters`), and only those that differ. A setting that cannot be made only costs time.
enum QueueSettings {
    struct Setting: Equatable {
        let name: String
        let text: String
        /// How the file begins when the setting is in force.
        let already: String

        init(_ name: String, _ text: String, already: String? = nil) {
            self.name = name
            self.text = text
            self.already = already ?? "\(text)\n"
        }
    }

    /// In the order of writing.
    static func of(queues: UInt16, depth: UInt16, noticesDeaths: Bool) -> [Setting] {
        var settings: [Setting] = []
        // The disk below the backing file has its own scheduler, and the kernel's loop has none either. For a disk with
        // one queue the kernel chooses mq-deadline where it is loaded, which costs 20 to 40 % more per request
        // (docs/performance.md). "none" comes first in the file's list, in brackets when in force.
        if queues == 1 || !noticesDeaths { settings.append(Setting("scheduler", "none", already: "[none]")) }
        if noticesDeaths { return settings }
        // Before 6.16 the kernel notices the death of a server that holds every tag only by one more request in the
        // driver or a request's timeout (docs/kernel-facts.md#full-queue-death). So one tag stays unused, and the
        // timeout is short; the kernel restarts it for a request that is only slow. This also helps a device without
        // recovery: otherwise its readers, and a forced deletion, wait 30 s for the end of its requests.
        settings.append(Setting("io_timeout", "2000"))
        // The block layer's minimum is 4.
        if depth > 4 { settings.append(Setting("nr_requests", "\(depth - 1)")) }
        return settings
    }
}
