"""Clients of message brokers: the ones of RABBITMQ_URL and MQTT_URL, by default this machine's."""

from __future__ import annotations

from typing import Any


def test_pika(client: Any, server_of: Any, silent: Any) -> None:
    client(
        "pika",
        """
        with patch_blocking():
            import pika

        def work(i):
            connection = pika.BlockingConnection(pika.URLParameters(url))
            channel = connection.channel()
            queue = channel.queue_declare("", exclusive=True).method.queue
            meet()
            channel.basic_publish("", queue, b"%d" % i * 10_000)
            for method, _, body in channel.consume(queue, auto_ack=True, inactivity_timeout=30):
                break
            channel.cancel()
            connection.close()
            return body
        assert together(work) == [b"%d" % i * 10_000 for i in range(MANY)]

        host, port = silent
        parameters = pika.ConnectionParameters(
            host, port, socket_timeout=0.2, stack_timeout=0.2, connection_attempts=1
        )
        timing_out(
            lambda i: pika.BlockingConnection(parameters),
            pika.adapters.utils.connection_workflow.AMQPConnectorStackTimeout,
        )
        """,
        url=server_of("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672/%2F")["url"],
        silent=silent,
    )


def test_paho_mqtt(client: Any, server_of: Any, silent: Any) -> None:
    server = server_of("MQTT_URL", "mqtt://127.0.0.1:1883")
    client(
        "paho.mqtt",
        """
        with patch_blocking():
            import os, queue, threading
            from paho.mqtt import client as mqtt

        def work(i):
            got, subscribed = queue.Queue(), threading.Event()
            topic = f"greenletio-test-{os.getpid()}/{i}"
            one = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
            one.on_connect = lambda *args: one.subscribe(topic, qos=1)
            one.on_subscribe = lambda *args: subscribed.set()
            one.on_message = lambda client, _, message: got.put(message.payload)
            one.connect(*server)
            one.loop_start()  # a thread: a greenlet
            assert subscribed.wait(30)
            meet()
            one.publish(topic, b"%d" % i * 10_000, qos=1).wait_for_publish(30)
            payload = got.get(timeout=30)
            one.disconnect()
            one.loop_stop()
            return payload
        assert together(work) == [b"%d" % i * 10_000 for i in range(MANY)]

        def unanswered(i):
            one = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
            one.connect(*silent, keepalive=1)
            while one.loop(0.5) == mqtt.MQTT_ERR_SUCCESS:
                pass
            raise TimeoutError
        timing_out(unanswered, TimeoutError)
        """,
        server=(server["host"], server["port"]),
        silent=silent,
    )
