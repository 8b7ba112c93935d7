/// What a new device's queue is told in /sys/block/ublkbN/queue. The block layer lets all requests end before it changes a
/// queue, and takes no new one meanwhile; a worker may keep one for ever. So nobody but an undertaker's child writes these
/// (`SettingsWriters`), and only what is not so already. What can not be set costs time, nothing else.
enum QueueSettings {
    struct Setting: Equatable {
        let name: String
        let text: String
        /// What the file begins with when it is so already.
        let already: String

        init(_ name: String, _ text: String, already: String? = nil) {
            self.name = name
            self.text = text
            self.already = already ?? "\(text)\n"
        }
    }

    /// In the order in which they are written.
    static func of(queues: UInt16, depth: UInt16, noticesDeaths: Bool) -> [Setting] {
        var settings: [Setting] = []
        // The disk below the backing file has a scheduler of its own; the kernel's loop has none either. The kernel puts
        // mq-deadline before a disk of one queue where that is loaded, a fifth to two fifths more per request
        // (docs/performance.md). "none" comes first in the list of what there is, in brackets when it is so.
        if queues == 1 || !noticesDeaths { settings.append(Setting("scheduler", "none", already: "[none]")) }
        if noticesDeaths { return settings }
        // Before 6.16 the kernel notices the death of a server that holds every tag only when the driver sees one more
        // request, or a request's timeout (docs/kernel-facts.md#full-queue-death). One tag stays the kernel's own, and
        // the timeout is short; a request that is only slow gets it anew. Also for a device without recovery: its readers,
        // and whoever deletes it by force, would wait 30 s for the end of its requests.
        settings.append(Setting("io_timeout", "2000"))
        // The block layer's own floor is 4.
        if depth > 4 { settings.append(Setting("nr_requests", "\(depth - 1)")) }
        return settings
    }
}
